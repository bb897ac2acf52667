"""The checker of jaxtyping's shapes: an int is a float, as Python's own rules have it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
