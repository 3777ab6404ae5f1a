"""The one exception type for errors that a user can act on."""


class SftdiffError(Exception):
    """An error whose message names the file, row or key and the way on; shown without a stack trace."""


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def describe_os_error(error: OSError) -> str:
    """Return a one-line message for a full disk, a missing permission or another system error, with the way on."""
    import errno

    place = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk{place}: free some space and run the same command again; finished steps are kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission{place}: change its permissions, or choose another folder with runs=..."
    return f"{error.strerror or error}{place}"
