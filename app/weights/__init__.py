"""Where weights come from: a source named by a setting becomes a verified local folder."""
