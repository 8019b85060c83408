# Built by scripts/images from a directory with these files and nothing else: the command line, and with `serve` the store.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --chown=65532:65532 root/ /
COPY podwire /usr/bin/podwire
ENV PATH=/usr/bin
USER 65532:65532
ENTRYPOINT ["/usr/bin/podwire"]
