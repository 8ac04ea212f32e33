from PIL import Image

from diffusers_erase.evaluation.page import page, table


def test_table_escapes_cells_and_aligns_numbers_right():
    text = table(("name", "n:"), [("a|b <i> `c` [d](e)", 3)])
    assert text == "| name | n |\n| --- | ---: |\n| a\\|b &lt;i&gt; \\`c\\` \\[d\\](e) | 3 |\n"


def test_page_renders_tables_and_headings(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "p.png")
    html = page(
        "A & B", "# A\n\n" + table(("x", "y:"), [("1", "2")]), [("<p>", tmp_path / "p.png")]
    )
    assert "<title>A &amp; B</title>" in html
    assert "<h1>A</h1>" in html
    assert '<td style="text-align:right">2</td>' in html
    assert 'alt="&lt;p&gt;" src="data:image/png;base64,' in html


def test_page_shows_html_as_text_and_drops_script_links():
    html = page("t", '<b onclick="f()">x</b>\n\n[y](javascript:f())')
    assert "<b" not in html
    assert "&lt;b onclick=" in html
    assert "href" not in html
