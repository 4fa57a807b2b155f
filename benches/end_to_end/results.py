"""The file of results: one section for each part, replaced when that part runs again."""

TITLE = "# mmapd beside etcd and Redis"
MARK = "## "


def sections(path):
    """The lines of each section, by its name, as they are in the file."""
    found, current = {}, None
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith(MARK):
            current = found.setdefault(line[len(MARK):], [])
        elif current is not None:
            current.append(line)
    return found


def replace(path, part, lines, order):
    """Puts the section of one part in its place and leaves the others as they are."""
    found = sections(path)
    found[part] = ["", *lines]
    text = [TITLE, ""]
    for name in sorted(found, key=lambda one: order.index(one) if one in order else len(order)):
        text += [f"{MARK}{name}", *"\n".join(found[name]).rstrip().splitlines(), ""]
    path.write_text("\n".join(text).rstrip() + "\n")
