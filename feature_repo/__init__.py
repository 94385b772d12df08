"""What is a user's state made of? Feast entities, sources, views and services, the online store's layout and
how it is filled: definitions, and no step of a day.

Which columns a view has depends on the settings, so every definition is a function of them;
:mod:`feature_repo.repository` calls them for ``$MTF_SETTINGS``, which is what ``feast apply`` reads.
"""
