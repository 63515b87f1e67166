"""`farm pull --format hf`: a folder for the libraries that know the model."""


def test_a_model_of_no_library_has_no_folder(farm, fake, tmp_path):
    outcome = farm("pull", "digits", "--format", "hf", "-o", str(tmp_path / "model"))
    assert outcome.exit_code == 1
    assert "pull it without --format hf" in outcome.stderr
    assert not (tmp_path / "model").exists()
