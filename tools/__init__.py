"""Tools of the project: its dependencies and their licences, the generated documents, and checks of deploy/."""
