"""A drawing of a red stop sign on a post before a street, made by code alone."""

from __future__ import annotations

import math
import random

import numpy
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 1024, 768
# Everything is drawn this many times larger and shrunk for smooth edges.
SCALE = 2
HORIZON, VANISHING = 430, 430
Color = tuple[int, int, int]
WALLS: tuple[Color, ...] = ((196, 160, 132), (170, 98, 80), (206, 196, 178), (148, 150, 158), (186, 134, 96))


def sky() -> Image.Image:
    """A hazy morning sky."""
    top, bottom = numpy.array((112, 168, 220)), numpy.array((226, 234, 236))
    share = numpy.linspace(0, 1.6, HEIGHT * SCALE).clip(0, 1)[:, None]
    rows = (top + (bottom - top) * share).astype(numpy.uint8)
    return Image.fromarray(numpy.repeat(rows[:, None, :], WIDTH * SCALE, axis=1))


def scaled(*values: float) -> tuple[float, ...]:
    """Coordinates of the finished picture in drawing pixels."""
    return tuple(value * SCALE for value in values)


def draw_house(draw: ImageDraw.ImageDraw, rng: random.Random, left: int, width: int, height: int) -> None:
    """A house front with rows of windows and a shop below."""
    top, wall = HORIZON + 40 - height, rng.choice(WALLS)
    draw.rectangle(scaled(left, top, left + width, HORIZON + 40), fill=wall)
    draw.rectangle(scaled(left, top, left + width, top + 8), fill=tuple(channel - 40 for channel in wall))
    columns = max(2, width // 38)
    for row in range((height - 60) // 48):
        for column in range(columns):
            x = left + 12 + column * (width - 12) / columns
            y = top + 22 + row * 48
            glass = rng.choice(((88, 108, 128), (70, 88, 108), (196, 206, 200)))
            draw.rectangle(scaled(x, y, x + 18, y + 28), fill=glass)
            draw.line(scaled(x, y + 14, x + 18, y + 14), fill=(232, 230, 224), width=SCALE)
    awning = rng.choice(((150, 46, 44), (44, 92, 70), (52, 74, 120)))
    draw.rectangle(scaled(left + 8, HORIZON - 6, left + width - 8, HORIZON + 6), fill=awning)
    draw.rectangle(scaled(left + 14, HORIZON + 6, left + width - 14, HORIZON + 40), fill=(62, 66, 72))


def draw_ground(draw: ImageDraw.ImageDraw) -> None:
    """The road to the horizon, its middle line, curbs and a crossing."""
    low = HORIZON + 36
    draw.rectangle(scaled(0, low, WIDTH, HEIGHT), fill=(176, 174, 168))
    road = (VANISHING - 16, low, VANISHING + 16, low, 980, HEIGHT, -240, HEIGHT)
    draw.polygon(scaled(*road), fill=(84, 86, 90))
    for side, end in ((-16, -240), (16, 980)):
        draw.line(scaled(VANISHING + side, low, end, HEIGHT), fill=(214, 212, 204), width=5 * SCALE)
    for step in range(9):
        near, far = (step / 9) ** 2, ((step + 0.5) / 9) ** 2
        y0, y1 = low + (HEIGHT - low) * near, low + (HEIGHT - low) * far
        x0, x1 = VANISHING - 60 * near, VANISHING - 60 * far
        stripe = (x0 - 1 - 7 * near, y0, x0 + 1 + 7 * near, y0, x1 + 1 + 7 * far, y1, x1 - 1 - 7 * far, y1)
        draw.polygon(scaled(*stripe), fill=(236, 206, 92))


def draw_tree(draw: ImageDraw.ImageDraw, rng: random.Random, x: int, base: int, size: int) -> None:
    """A street tree with a round, leafy crown."""
    draw.rectangle(scaled(x - size * 0.06, base - size, x + size * 0.06, base), fill=(92, 70, 54))
    for _ in range(90):
        angle, reach = rng.uniform(0, math.tau), size * 0.5 * math.sqrt(rng.random())
        center_x, center_y = x + math.cos(angle) * reach, base - size * 1.25 + math.sin(angle) * reach
        radius, green = size * 0.14, rng.randint(96, 150)
        leaf = (green - 46, green, 58)
        draw.circle(scaled(center_x, center_y), radius * SCALE, fill=leaf)


def draw_car(draw: ImageDraw.ImageDraw, x: int, y: int, size: int, color: Color) -> None:
    """A parked car seen from behind."""
    draw.rounded_rectangle(scaled(x, y - size * 0.45, x + size, y), radius=size * 0.1 * SCALE, fill=color)
    roof = (x + size * 0.12, y - size * 0.42, x + size * 0.24, y - size * 0.72)
    roof += (x + size * 0.76, y - size * 0.72, x + size * 0.88, y - size * 0.42)
    draw.polygon(scaled(*roof), fill=(58, 70, 84))
    for left in (0.06, 0.78):
        lamp = (x + size * left, y - size * 0.34, x + size * (left + 0.16), y - size * 0.24)
        draw.rectangle(scaled(*lamp), fill=(190, 40, 40))
        wheel = (x + size * left, y - size * 0.06, x + size * (left + 0.16), y + size * 0.08)
        draw.rectangle(scaled(*wheel), fill=(30, 30, 32))


def octagon(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of an upright octagon in drawing pixels."""
    angles = [math.pi / 8 + corner * math.pi / 4 for corner in range(8)]
    return [((x + radius * math.cos(angle)) * SCALE, (y + radius * math.sin(angle)) * SCALE) for angle in angles]


def draw_sign(draw: ImageDraw.ImageDraw) -> None:
    """The stop sign with its post, sharp in front of everything."""
    x, y, radius = 700, 270, 168
    draw.rectangle(scaled(x - 11, y, x + 11, HEIGHT), fill=(122, 126, 130))
    draw.rectangle(scaled(x + 4, y, x + 11, HEIGHT), fill=(92, 96, 100))
    draw.polygon(octagon(x + 3, y + 5, radius), fill=(70, 70, 74))
    draw.polygon(octagon(x, y, radius), fill=(245, 245, 242))
    draw.polygon(octagon(x, y, radius - 11), fill=(196, 24, 34))
    font = ImageFont.truetype("DejaVuSansCondensed-Bold.ttf", 98 * SCALE)
    draw.text(scaled(x, y), "STOP", font=font, fill=(250, 250, 248), anchor="mm")


def stop_sign_picture() -> Image.Image:
    """The whole drawing."""
    rng = random.Random(12)
    picture = sky()
    draw = ImageDraw.Draw(picture)
    left = -20
    while left < WIDTH:
        width = rng.randint(90, 170)
        distance = abs(left + width / 2 - VANISHING) / WIDTH
        if abs(left + width / 2 - VANISHING) > 60:
            draw_house(draw, rng, left, width, int(120 + 380 * distance + rng.randint(0, 40)))
        left += width
    draw_ground(draw)
    for x, base, size in ((300, 486, 60), (530, 482, 54), (180, 520, 110), (920, 600, 190)):
        draw_tree(draw, rng, x, base, size)
    draw_car(draw, 250, 590, 110, (60, 96, 150))
    draw_car(draw, 480, 520, 62, (206, 204, 198))
    picture = picture.filter(ImageFilter.GaussianBlur(2.2 * SCALE))
    draw_sign(ImageDraw.Draw(picture))
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
