"""Stores to and from what other tools keep: HDF5, safetensors, Hugging Face datasets, numpy arrays, bergson indices."""

from gradatoms_store.exchange.bergson import import_bergson
from gradatoms_store.exchange.exporting import EXPORTS, export_dataset, export_hdf5, export_safetensors
from gradatoms_store.exchange.importing import import_numpy

__all__ = ["EXPORTS", "export_dataset", "export_hdf5", "export_safetensors", "import_bergson", "import_numpy"]
