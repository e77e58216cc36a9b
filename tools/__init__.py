"""The scripts with which the project measures itself. They need a checkout and are not part of the package."""
