"""Videos that tests make and count."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def moving_square(path: Path, count: int = 5, fps: float = 10, size: tuple[int, int] = (64, 48)) -> None:
    """A video made by OpenCV: a red square that goes to the right by 4 pixels a frame."""
    codec = cv2.VideoWriter_fourcc(*('MJPG' if path.suffix == '.avi' else 'mp4v'))
    writer = cv2.VideoWriter(str(path), codec, fps, size)
    for number in range(count):
        frame = np.full((size[1], size[0], 3), 90, np.uint8)
        frame[16:32, 4 * number:4 * number + 16] = (0, 0, 220)
        writer.write(frame)
    writer.release()


def frames_of(path: Path) -> tuple[int, float, int, int]:
    """Count, rate, width and height, the frames counted by decoding them."""
    video = cv2.VideoCapture(str(path))
    count = 0
    while video.read()[0]:
        count += 1
    return count, *(video.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
