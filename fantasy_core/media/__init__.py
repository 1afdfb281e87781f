"""Images, videos and sound in and out (Pillow, PyAV), always placed by their timestamps.

Pictures are float tensors in [0, 1], [3, H, W]; sound is float32 numpy [channels, samples] at its own rate. Reading and
writing are streamed: memory does not grow with the length of a video. Every fault of a user's file is a UserError.
"""

from .files import check_file, replacing
from .images import contact_sheet, fit_image, parse_size, read_image
from .read import frame_times, rational, read_audio, read_video, video_header, video_seconds, video_size
from .write import VideoWriter, write_wav

__all__ = [
    "VideoWriter",
    "check_file",
    "contact_sheet",
    "fit_image",
    "frame_times",
    "parse_size",
    "rational",
    "read_audio",
    "read_image",
    "read_video",
    "replacing",
    "video_header",
    "video_seconds",
    "video_size",
    "write_wav",
]
