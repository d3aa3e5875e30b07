"""What the tests of pages share: whether the tags of a page are closed as they were opened."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br"}


class Checked(HTMLParser):
    """Counts tags, and fails where one is closed that is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
