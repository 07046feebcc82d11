"""What batch mode is made of: scans, methods, products and tables of folders without a node.

`dicom_node.batch_mode` puts them together; nothing here knows the ledger or the wire.
"""
