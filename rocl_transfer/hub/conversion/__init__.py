"""Checkpoints of other projects to timm's layout: read without unpickling code, matched by name and shape, strict after that."""

from rocl_transfer.hub.conversion.convert import Conversion, ConversionOptions, check_folder, convert

__all__ = ["Conversion", "ConversionOptions", "check_folder", "convert"]
