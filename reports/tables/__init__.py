"""The tables of a report: one file a table (`Table`s of text), and `render`, which writes them."""
