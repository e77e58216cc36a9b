"""What the project measures itself with: scripts that need a checkout and are not part of the package."""
