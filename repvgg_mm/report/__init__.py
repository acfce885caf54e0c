"""Pages of what a conversion or an export found.

Read in this order: `page` (what a page is made of, and `page.html.j2`), `charts`; `ranges`, `pictures`, `side_by_side`
and `mistakes` (what is looked at); `facts`, `mistakes_section`, `conversion_page`, `fewer_bits`, `export_page`.
"""
