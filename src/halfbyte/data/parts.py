"""The file of a data section and, where they are given, the files that validate and test; all in the form of the first."""

from halfbyte.data.read import Reading, read_records
from halfbyte.data.split import TEST, TRAIN, VALIDATION
from halfbyte.recipe.schema import SomeData


def open_parts(section: SomeData) -> list[tuple[int, Reading]]:
    """Each reading with the part that it is (split.py); the first one's section says what was found."""
    first = read_records(section)
    given = ((VALIDATION, section.validation_path), (TEST, section.test_path))
    return [(TRAIN, first), *((part, read_records(first.section, path)) for part, path in given if path is not None)]
