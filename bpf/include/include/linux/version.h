/* Only BCC's own helpers ask; the running kernel's version is passed by BCC_LINUX_VERSION_CODE. */
#define LINUX_VERSION_CODE 0x60100
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
