"""What is known about the packages that the service installs: names, licences, vulnerabilities."""
