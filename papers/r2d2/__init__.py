"""R2D2: which tables of a data lake are contained in others, and which of them to delete (SIGMOD 2024).

Table A is contained in table B if A's columns are among B's and every row of A occurs in B's projection to them. Three
stages, each dearer than the one before, delete candidate edges B -> A that can't be containments, and never others:

    schema_graph      A's schema in B's, compared within clusters of schemas and not for all pairs (SGB)
    min_max           bounds and nulls from Parquet footers; no data page is read (MMP)
    content           a few sampled rows of A looked up in B, on DuckDB or Spark (CLP)

Then `retention` chooses which tables to delete and rebuild on demand from a kept container (OPT-RET, an integer
program; `retention_tree`: a linear-time dynamic program on forests), and `recipes` really rebuilds them.
"""
