"""The common ground of all packages: configuration files, optional extras, the front door of the commands."""
