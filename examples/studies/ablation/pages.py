def write_pages(report, file):  # the pages are made next
    return ""
