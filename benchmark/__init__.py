if __name__ == "benchmark":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench, not benchmark: the folder is only where that package's files lie")
