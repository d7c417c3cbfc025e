if __name__ == "reports":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench.reports, not reports: the folder is only where that package's files lie")
