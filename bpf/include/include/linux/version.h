/* BCC's own helpers ask for nothing newer. */
#define LINUX_VERSION_CODE 0x60100
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
