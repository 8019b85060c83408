# Built by scripts/images from a directory with these files and nothing else.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --chown=65532:65532 root/ /
COPY cluster /usr/bin/cluster
USER 65532:65532
ENTRYPOINT ["/usr/bin/cluster"]
