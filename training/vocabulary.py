"""The closed vocabulary of the demo model: words, colors, shapes, places and their Chinese names."""

# Common words of three to six letters, so that each fits a 112-pixel picture in large print.
WORD_LIST = """
apple bread cake milk tea coffee sugar salt rice soup fish egg lemon honey water juice
cat dog bird horse cow lion tiger bear wolf fox mouse duck goose sheep goat frog
red door window house roof wall room floor table chair lamp bed desk shelf stairs garden
tree leaf flower grass river lake ocean hill rock sand snow rain wind cloud storm sun
moon star sky fire ice night day week month year spring summer autumn winter hour time
book paper pen letter page story music song piano drum dance film photo paint color
car bus train plane boat ship bike road street bridge town city park shop market school
hand foot head eye ear nose mouth hair heart arm
mother father sister child friend king queen doctor artist farmer
open close stop exit start sale free hot cold new old big small fast slow up
go yes no left right north south east west gold silver green blue
ticket coin clock watch phone radio key box bag hat shoe coat shirt dress ring cup
"""
WORDS: tuple[str, ...] = tuple(WORD_LIST.split())

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 150, 60),
    "blue": (30, 80, 210),
    "yellow": (245, 205, 20),
    "orange": (245, 130, 20),
    "purple": (130, 45, 170),
    "pink": (250, 135, 185),
    "brown": (125, 75, 35),
    "black": (20, 20, 20),
    "gray": (135, 135, 140),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")

CHINESE_COLORS: dict[str, str] = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "orange": "橙色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "gray": "灰色",
}
CHINESE_SHAPES: dict[str, str] = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星形",
    "diamond": "菱形",
    "cross": "十字形",
    "heart": "心形",
    "ring": "圆环",
}

# Places of a three by three grid, row by row.
PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")
