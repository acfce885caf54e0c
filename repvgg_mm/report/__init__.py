"""Pages and tables of what a conversion, an export or a benchmark found.

Read in this order: `page` (what a page is made of, and `page.html.j2`), `charts`; `ranges` and `side_by_side` (what is
looked at in both forms); `facts`, `conversion_page`, `fewer_bits`, `export_page`; `benchmark` (models and engines side
by side), `benchmark_output` (its table, file and picture) and `benchmark_page`.
"""
