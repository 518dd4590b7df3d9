"""The gradient store: unit gradients, norms and examples in immutable HDF5 shards; `store/FORMAT.md` is its format."""

from gradatoms_store.errors import (
    StoreError,
    StoreExistsError,
    StoreFormatError,
    StoreMismatchError,
    StoreNotFoundError,
    StoreValueError,
)
from gradatoms_store.info import StoreInfo
from gradatoms_store.layout import row_bytes
from gradatoms_store.merge import merge_stores
from gradatoms_store.reader import Store, open_store, store_info
from gradatoms_store.schema import (
    ACTIVATION,
    SCHEMA_VERSION,
    SKETCH,
    ExampleRecord,
    GradientBatch,
    GradientBlock,
    HookSpec,
    StoreHeader,
)
from gradatoms_store.verify import Problem, RepairReport, VerifyReport, repair_store, verify_store
from gradatoms_store.view import write_view
from gradatoms_store.writer import StoreWriter, discard_empty

__all__ = [
    "ACTIVATION",
    "SCHEMA_VERSION",
    "SKETCH",
    "ExampleRecord",
    "GradientBatch",
    "GradientBlock",
    "HookSpec",
    "Problem",
    "RepairReport",
    "Store",
    "StoreError",
    "StoreExistsError",
    "StoreFormatError",
    "StoreHeader",
    "StoreInfo",
    "StoreMismatchError",
    "StoreNotFoundError",
    "StoreValueError",
    "StoreWriter",
    "VerifyReport",
    "discard_empty",
    "merge_stores",
    "open_store",
    "repair_store",
    "row_bytes",
    "store_info",
    "verify_store",
    "write_view",
]
