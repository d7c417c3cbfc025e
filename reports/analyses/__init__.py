"""What the papers look for inside a run: an analysis is one question, its tidy tables and its figures, in one file.

Those here read records alone. Those that rebuild learners from sealed states are `cilbench.analyses`; they draw with
`plots` as well. docs/how-to/analyse.md has the list.
"""
