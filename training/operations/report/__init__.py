"""What does a person read? The page of a day, and the index: what is asked first, and all days.

:mod:`.page` builds a day's, :mod:`.index_page` the index, :mod:`.standing` has the answers of both and of
`mtf status`, which wants no plots and so imports none.
"""
