"""What a user's state is made of: Feast entities, sources, views and services. Definitions only.

Which columns a view has depends on the settings, so every definition is a function of them;
:mod:`feature_repo.repository` calls them for ``$MTF_SETTINGS``, which is what ``feast apply`` reads.
"""
