"""From a name to batches: open, find columns, split, decode, draw; and the views that are made of the images on the device."""

from rocl_transfer.data.audit import store_splits
from rocl_transfer.data.augmentation import Augmentation, light_views
from rocl_transfer.data.batches import Batch, Batches, Sampler, derive_seed, generators
from rocl_transfer.data.fingerprint import fingerprint
from rocl_transfer.data.images import ImageData, ImageSet, labels_of, load_images
from rocl_transfer.data.labels import match_labels
from rocl_transfer.data.options import ImageOptions, PretrainImageOptions, StorageOptions
from rocl_transfer.data.splits import stratified_sample
from rocl_transfer.data.stores import LazyStore, Resident, Store, store_images
from rocl_transfer.data.streaming import Stream, StreamedBatches, open_stream

__all__ = [
    "Augmentation", "Batch", "Batches", "ImageData", "ImageOptions", "ImageSet", "LazyStore", "PretrainImageOptions", "Resident", "Sampler",
    "StorageOptions", "Store", "Stream", "StreamedBatches", "derive_seed", "fingerprint", "generators", "labels_of", "light_views", "load_images",
    "match_labels", "open_stream", "store_images", "store_splits", "stratified_sample",
]  # fmt: skip
