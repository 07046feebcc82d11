"""A real node and series of two echoes, one of which carries a lesion."""

import csv
import io

from dicom_node.demo.pacs import free_ports
from tests.make import lines
from tests.make.instances import write
from tests.make.nodes import run_cli, running_node, storescu, tiny_encoder_section

CONFIG = """
[node]
data_dir = "node"
[receiver]
port = {port}
[completion]
quiet = "1 s"
[grouping]
discover = false
[web]
port = {web_port}
{encoder}
[[protocol]]
name = "t2"
mode = "live"
min_reference = 3
extent_mm = [32.0, 32.0, 32.0]
finding_threshold = 1.0
[protocol.match]
modality = "MR"
echo_time_ms = [60.0, 100.0]
[[destination]]
name = "nobody"
ae_title = "NOBODY"
host = "127.0.0.1"
port = {dead_port}
"""


def test_two_echoes_come_in_one_series_and_one_of_them_is_claimed(tmp_path):
    port, web_port, dead_port = free_ports(3)
    encoder = tiny_encoder_section(tmp_path)
    text = CONFIG.format(port=port, web_port=web_port, dead_port=dead_port, encoder=encoder)
    with running_node(tmp_path, text, port, web_port) as node:
        for seed in range(4):
            ill = (80,) if seed == 3 else ()
            made = lines.echoes(seed, (10, 80), planted=ill, anatomy=50)
            files = [write(ds, tmp_path / f"s{seed}" / f"{n:03d}.dcm") for n, ds in enumerate(made)]
            assert storescu(node.port, files).returncode == 0
        done = node.wait_for(
            lambda s: (
                s["jobs"].get("report done", 0) == 4 and s["jobs"].get("tokenize rejected", 0) == 4
            ),
            "four parts scored and four rejected",
        )
        assert done["jobs"]["tokenize done"] == 8
        assert {one["part"] for one in done["unfinished"]} == {"EchoTime 10"}
        printed = run_cli("outcomes", "--csv", "--config", node.config)
        rows = list(csv.DictReader(io.StringIO(printed.stdout)))
        assert sorted((row["part"], row["outcome"]) for row in rows) == [
            *[("EchoTime 10", "rejected")] * 4,
            *[("EchoTime 80", "scored")] * 4,
        ]
        said = run_cli("status", "--config", node.config).stdout
        assert "(EchoTime 10): no [[protocol]] matches" in said
