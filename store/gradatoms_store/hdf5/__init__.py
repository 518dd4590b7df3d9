"""The part of the HDF5 file format that a shard and a view consist of, read without libhdf5.

libhdf5 trusts what it reads: a file made for the purpose, with every checksum right, makes it allocate gigabytes, run the
filters of a group's heap, follow links to other files, or crash. So no file that is not known to be sound is put before it.
What is read here is what it writes with the version bounds v110; anything else is `Unsound`. Sections in the modules are
those of the HDF5 File Format Specification, version 3.0.
"""
