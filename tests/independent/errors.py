"""The two reasons for which a file is refused."""


class InvalidFileError(ValueError):
    """The file, or the model, breaks a rule of its format."""


class UnsupportedFileError(ValueError):
    """The file needs something that this decoder does not have."""
