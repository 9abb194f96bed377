"""What lasts: the Store protocol, its backends, the record frame."""

from callboard_storage.memory_store import MemoryStore
from callboard_storage.open_store import open_store
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Acknowledge, Deletion, Fence, StoredRecord, StoreFigures

__all__ = [
    "open_store",
    "MemoryStore",
    "Store",
    "Batch",
    "Deletion",
    "Fence",
    "Acknowledge",
    "StoredRecord",
    "StoreFigures",
]
