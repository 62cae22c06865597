"""The tree of errors a user can meet; each message names the file or setting and the next thing to do.

TaxbreakError
├── TraceFormatError   a file that cannot be read as a trace
├── SpoolError         a spool that cannot be read or written
├── BaselineError      a file of baselines that cannot be read or written
├── ReplayError        a replay that could not be run
├── WorkloadError      a server's traffic that cannot be simulated
└── SettingsError      a setting with a wrong value
"""


class TaxbreakError(Exception):
    """Anything this package raises on purpose."""


class TraceFormatError(TaxbreakError):
    """A file is missing, damaged, or not a Kineto trace."""


class SpoolError(TaxbreakError):
    """The spool cannot be read or written."""


class BaselineError(TaxbreakError):
    """A file of baselines cannot be read or written, or is something else."""


class ReplayError(TaxbreakError):
    """A replay could not be run."""


class WorkloadError(TaxbreakError):
    """A server's traffic cannot be simulated."""


class SettingsError(TaxbreakError):
    """A setting has a wrong value."""
