"""What a server and whoever asks it agree on when nobody says otherwise: settings, API, client and command line."""

HOST = "127.0.0.1"
PORT = 9797
URL = f"http://{HOST}:{PORT}"

CAPTURE_STEPS = 4
MAX_CAPTURE_STEPS = 256
CAPTURE_TIMEOUT_S = 60.0
MAX_CAPTURE_TIMEOUT_S = 3600.0

MIN_SAMPLE_EVERY, MAX_SAMPLE_EVERY = 2, 2**31

ARCHIVE_URL = r"(s3://[^/\s@?#]+(/[^\s@?#]*)?|gs://[^/\s@?#]+(/[^\s@?#]*)?|az://[^/\s@?#]+/[^\s@?#]+|file:///[^\s?#]*)"
ARCHIVE_URL_WORDS = (
    "an archive is s3://BUCKET/PATH, gs://BUCKET/PATH, az://ACCOUNT/CONTAINER/PATH or file:///FOLDER; "
    "keys are no part of it"
)
