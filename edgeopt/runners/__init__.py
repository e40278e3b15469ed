"""Where an artifact runs: this host, and later an emulator, a board over ssh, a phone over adb."""
