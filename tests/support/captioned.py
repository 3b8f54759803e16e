"""Samples of captioned images in the formats of Flickr30K and COCO."""

from PIL import Image


def draw(folder, *names):
    """Small images of different shades, every other one in grey levels."""
    folder.mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(names):
        Image.new("L" if shade % 2 else "RGB", (12, 10), 40 * shade).save(folder / name)


def karpathy(entries, **more):
    """Content of a split file of Karpathy's, from (image, split, number of captions)."""
    return {
        "images": [
            {
                "filename": name,
                "split": split,
                "sentences": [{"raw": f"{name} {i} ", "tokens": []} for i in range(count)],
                **more,
            }
            for name, split, count in entries
        ]
    }
