"""The tree of errors a user can meet; each message names the file or setting and the next thing to do.

TaxbreakError
├── TraceFormatError   a file that cannot be read as a trace
├── SpoolError         a spool that cannot be read or written
├── BaselineError      a file of baselines that cannot be read or written
├── ReplayError        a replay that could not be run
├── WorkloadError      a server's traffic that cannot be simulated
├── ArchiveError       an object of an archive that is not there or damaged, or no name of one
│   ├── Away           an archive that cannot be reached now
│   └── Refused        an archive that does not take what it is given
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


class ArchiveError(TaxbreakError):
    """An object of an archive is not there, damaged, or has no name of one."""


class Away(ArchiveError):
    """An archive cannot be reached, or answers that it cannot now: the same may go well later."""


class Refused(ArchiveError):
    """An archive takes nothing from us: credentials, no such bucket, full, or no archive at all."""


class SettingsError(TaxbreakError):
    """A setting has a wrong value."""
