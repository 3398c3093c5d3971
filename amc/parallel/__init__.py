"""Side by side: the strategies of a search, the runs of a sweep."""
