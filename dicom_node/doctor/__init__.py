"""What keeps a node from working, looked for before anybody has to ask: `dicom-node doctor`.

Each module holds the checks of one kind of thing; a check looks, changes nothing that stays, and
says what it saw or what to do. ``running`` runs them apart from each other; ``all_checks`` has the
list.
"""
