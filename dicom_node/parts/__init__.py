"""The node's processes, each run by itself: receiving and showing never load torch.

Each module is a program (``python -m dicom_node.parts.receiver --config ... --name ...``) and knows
the others by the ledger alone. The supervisor starts them; any can also be started by hand.
"""
