"""A setting of a cluster that is of another form is told in words: the value, the rule, the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.describe.settings.cluster import load_cluster
from cluster.describe.shell_words import path_word
from labeler.config.loading import load_job
from logitstore.common.config_file import ConfigError

GROUP = '[[groups]]\nname = "g"\ncount = 1\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            f'name = "My.Cluster"\n{GROUP}',
            r"name = 'My.Cluster': a name has at most 40 small letters.*write it so",
        ),
        ('name = "c"\n[[groups]]\nname = "H100"\ncount = 1', r"groups\.0\.name = 'H100': a name has at most"),
        ('name = "c"\n[groups]\nname = "g"\ncount = 1', r"groups: it should be a list; write \[\[groups\]\]"),
        (f'name = "c"\nray_version = "2 60"\n{GROUP}', "a version has digits"),
        (
            f'name = "c"\npython = "conda run -n e python"\n{GROUP}',
            r"one program, without arguments; name the",
        ),
        (f'name = "c"\npython = " "\n{GROUP}', "one program, without arguments"),
        (f'name = "c"\npython = "/opt/python -u"\n{GROUP}', "one program, without arguments"),
        (f'name = "c"\npython = "/usr/bin/env /opt/python"\n{GROUP}', "one program, without arguments"),
        (f'name = "c"\n{GROUP}[kubernetes]\nspot_label = "spot"', "a label is written as name=value"),
        (f'name = "c"\n{GROUP}[kubernetes]\nsecret = "{"a" * 254}"', "at most 253 small letters"),
        (f'name = "c"\n{GROUP}[slurm]\npartition = "gpu h"', "one word of letters.*`sinfo`"),
        (f'name = "c"\n{GROUP}[slurm]\ninterface = "ib0;x"', "a network interface is one word"),
        (f'name = "c"\n{GROUP}[slurm.gpu_types]\nH100 = "h 100"', r"gpu_types\.H100 = 'h 100'.*one word"),
        (f'name = "c"\n{GROUP}[kubernetes]\nnamespace = "My_Space"', "a namespace is named by"),
        (f'name = "c"\n{GROUP}[cache]\nbucket = "s3://a b"', "a bucket is s3://NAME/PATH"),
        (f'name = "c"\npython = "/usr/bin/env python3"\n{GROUP}', "one program, without arguments"),
        (f'name = "c"\npython = "LANG=C python3"\n{GROUP}', "one program, without arguments"),
        (f'name = "c"\npython = "/opt/venv/bin/"\n{GROUP}', "one program, without arguments"),
        (f'name = "c"\n{GROUP}[kubernetes]\nplatform = ["gke"]', r"kubernetes\.platform = \['gke'\]: "),
        (f'name = "c"\ndisk_gb = 1{"0" * 400}\n{GROUP}', "disk_gb has 1329 bits; .* write a smaller one"),
        (f'name = "c"\n{GROUP}cores = {2**63}', r"groups\.0: cores has 64 bits; .* write a smaller one"),
        (f'name = "c"\ndisk_gb = 1{"0" * 5000}\n{GROUP}', r"cluster\.toml: not a valid .*4300 digits"),
    ],
)
def test_the_rule_and_the_remedy_are_words(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        load_cluster(str(file))
    for regular in ("should match pattern", "at least 1 item", "valid tuple", "^"):
        assert regular not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ([], ["[[groups]]", "[kubernetes]", "restricted = false    # true or false", "[slurm]", "[cache]"]),
        (["rounds"], ["[rounds]", "own_weight = 1 ", "[stop]", "kl_below = none"]),
    ],
)
def test_every_setting_is_listed(
    file: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """They stood in the code alone."""
    assert main(["settings", *file]) == 0
    said = capsys.readouterr().out
    assert [name for name in names if name not in said] == []
    assert main(["settings", *file, "--form", "markdown"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) > 8
    assert [row[0] for row in rows if not row[-1].strip(" |")] == []


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("input.slice=1of4", "a slice is NUMBER/SLICES"),
        ("teacher.api.key_variable=A B", "name of a variable"),
    ],
)
def test_so_is_that_of_a_job(setting: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('[teacher]\nmodel = "m"\nengine = "openai"\n[teacher.api]\nbase_url = "http://h/v1"\n')
    with pytest.raises(ConfigError, match=says) as refused:
        load_job(str(file), [setting, "input.uri=a", "output.uri=b"], {})
    assert "should match pattern" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("$HOME/venv/bin/python", '"${HOME}/venv/bin/python"'),
        ("${VENV}/bin/python", '"${VENV}/bin/python"'),
        ("~/$X/python", '"${HOME}/${X}/python"'),
        ("~/my venv/python", "~/'my venv/python'"),
        ("$(touch /x)/python", "'$(touch /x)/python'"),
        ("$HOME/a b", "'$HOME/a b'"),
    ],
)
def test_a_variable_of_a_path_is_looked_up_where_the_line_runs(path: str, word: str) -> None:
    assert path_word(path) == word
