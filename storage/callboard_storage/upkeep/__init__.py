"""Looking after a data directory: verify, compact, backup and restore, export and import, retention."""

from callboard_storage.upkeep.backups import backup, restore
from callboard_storage.upkeep.compacting import compact
from callboard_storage.upkeep.counting import stats
from callboard_storage.upkeep.exporting import export_page, export_session
from callboard_storage.upkeep.importing import ExportedSession, import_session, read_session
from callboard_storage.upkeep.migrating import migrate
from callboard_storage.upkeep.report import (
    BackupReport,
    CompactReport,
    ExportReport,
    ImportReport,
    MigrateReport,
    Problem,
    RestoreReport,
    RetainReport,
    StatsReport,
    VerifyReport,
)
from callboard_storage.upkeep.retention import retain
from callboard_storage.upkeep.verifying import verify

__all__ = [
    "verify",
    "compact",
    "migrate",
    "backup",
    "restore",
    "export_session",
    "export_page",
    "import_session",
    "retain",
    "stats",
    "read_session",
    "ExportedSession",
    "Problem",
    "VerifyReport",
    "CompactReport",
    "MigrateReport",
    "BackupReport",
    "RestoreReport",
    "ExportReport",
    "ImportReport",
    "RetainReport",
    "StatsReport",
]
