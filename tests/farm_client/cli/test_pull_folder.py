"""`farm pull --format hf`: a folder for the libraries that know the model."""


def test_a_model_of_no_library_has_no_folder(farm, fake, tmp_path):
    outcome = farm("pull", "digits", "--format", "hf", "-o", str(tmp_path / "model"))
    assert outcome.exit_code == 1
    assert "pull it without --format hf" in outcome.stderr
    assert not (tmp_path / "model").exists()


def test_merging_is_of_one_format(farm, fake, tmp_path):
    outcome = farm("pull", "digits", "--merged", "-o", str(tmp_path / "model"))
    assert outcome.exit_code == 2
    assert "say --format hf --merged" in outcome.stderr


def test_a_model_that_has_no_adapter_is_not_merged(farm, fake, tmp_path):
    outcome = farm("pull", "digits", "--format", "hf", "--merged", "-o", str(tmp_path / "model"))
    assert outcome.exit_code == 1
    assert "recorded no model of transformers" in outcome.stderr
