"""One description of a table, shown on a terminal or in a page."""

from dataclasses import dataclass, field
from typing import Literal

from rich.table import Table
from rich.text import Text

Tone = Literal["", "good", "bad"]
_STYLES = {"": "", "good": "green", "bad": "bold red"}


@dataclass(frozen=True)
class Cell:
    """`text` as shown; `value` is what it sorts by (None: the text)."""

    text: str
    value: float | None = None
    tone: Tone = ""


@dataclass
class TextTable:
    """A titled table. Columns with a number in every row are set to the right."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: Cell | str) -> None:
        """Append a row, one cell a column."""
        row = [cell if isinstance(cell, Cell) else Cell(cell) for cell in cells]
        if len(row) != len(self.columns):
            raise ValueError(f"{self.title}: {len(row)} cells for {len(self.columns)} columns")
        self.rows.append(row)

    def numeric(self, column: int) -> bool:
        """Whether the column holds numbers."""
        filled = [row[column] for row in self.rows if row[column].text not in ("", "-")]
        return bool(filled) and all(cell.value is not None for cell in filled)

    def to_rich(self) -> Table:
        """The table for a terminal."""
        table = Table(title=self.title, title_justify="left")
        for index, name in enumerate(self.columns):
            right = self.numeric(index)
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell.text, style=_STYLES[cell.tone]) for cell in row))
        return table
