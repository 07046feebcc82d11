"""The command line as the console script runs it."""

import sys

from dicom_node import cli


def runner(monkeypatch, capsys, folder, *words, columns=200):
    """Call it with the words of a verb: (exit status, output, errors). It runs in `folder`."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dicom-node", *words, *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
